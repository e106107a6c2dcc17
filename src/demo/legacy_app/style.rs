//! How the app's pages look: light or dark as the browser likes it, unless the session says which.

/// The style sheet of every page.
pub(super) const STYLE: &str = "\
:root { color-scheme: light dark; --accent: #b4442c; --line: #8883; --soft: #8881; }
:root[data-theme=dark] { color-scheme: dark; }
:root[data-theme=light] { color-scheme: light; }
* { box-sizing: border-box; }
body {
  margin: 0; padding: 2rem 1rem 4rem; font: 1rem/1.5 system-ui, sans-serif;
  background: light-dark(#f3efe9, #191714); color: light-dark(#231f1b, #ece6de);
}
main { max-width: 56rem; margin: auto; display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.25rem; }
h1, h2, p { margin: 0; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.1rem; }
p + p { margin-top: .75rem; }
a { color: light-dark(#8f3420, #f0a08d); }
code, pre, td, table th { font: .85rem/1.5 ui-monospace, monospace; }
code { overflow-wrap: anywhere; }
.card {
  display: grid; gap: .75rem; padding: 1.25rem 1.5rem; border-radius: 1rem; min-width: 0;
  background: light-dark(#fff, #24211d); box-shadow: 0 1px 3px #0002;
}
.who { display: flex; flex-wrap: wrap; align-items: center; gap: 1rem; padding: 0 .25rem; }
.who div { flex: 1; min-width: 12rem; overflow-wrap: anywhere; }
.who img { border-radius: 50%; }
.note { padding: .75rem 1rem; border-radius: .75rem; border: 1px solid var(--accent); }
.rows { display: grid; }
.row {
  display: grid; grid-template-columns: 10rem minmax(0, 1fr); gap: 1rem; align-items: start;
  padding: .75rem 0; border-top: 1px solid var(--line);
}
.row > div:first-child > * { display: block; overflow-wrap: anywhere; }
.quiet { opacity: .7; font-size: .9rem; }
.forms { display: flex; flex-wrap: wrap; gap: .75rem 1.5rem; }
form { margin: 0; max-width: 100%; display: grid; grid-template-columns: minmax(0, 1fr); gap: .35rem; justify-items: start; align-content: start; }
form code { opacity: .7; font-size: .78rem; }
.field { display: flex; gap: .5rem; max-width: 100%; }
.field input { flex: 1 1 14rem; }
button, .button, input {
  font: inherit; padding: .4rem .9rem; border-radius: .6rem; border: 1px solid var(--line);
  background: var(--soft); color: inherit; text-decoration: none; min-width: 0;
}
button, .button { cursor: pointer; }
button:hover, .button:hover { border-color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.main.button { background: var(--accent); border-color: var(--accent); color: #fff; font-weight: 600; }
.button.main { display: inline-block; }
pre { margin: 0; padding: 1rem; border-radius: .6rem; background: var(--soft); overflow: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-top: 1px solid var(--line); }
thead th { border: 0; opacity: .7; }
tbody th { font-weight: 400; white-space: nowrap; opacity: .8; }
tr.ours th { color: light-dark(#8f3420, #f0a08d); opacity: 1; font-weight: 600; }
td { overflow-wrap: anywhere; min-width: 16rem; }
.links { text-align: center; font-size: .9rem; }
@media (max-width: 40rem) { .row { grid-template-columns: minmax(0, 1fr); gap: .5rem; } }
";
