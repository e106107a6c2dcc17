//! Changes of one session on one worker. What comes while something is being saved is saved
//! together, as the next version: many answers at once cost few writes, and a worker is at odds with
//! other workers alone. A change that was taken is made, whether or not its browser waits for it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::oneshot;

use super::super::Session;
use super::super::cache::Opened;
use super::super::change::{CommitRefused, Edit, Next, Unavailable};
use super::super::lifetime::Lifetimes;
use super::super::seal::SealError;
use super::super::store::{Held, Made};
use super::record::{Read, Records, Swapped};
use super::ticket::Ticket;
use crate::clock::Timestamp;

/// How long Redis may take to save a batch or say that somebody was faster. While it is silent, what comes
/// waits for as long from when it came, however many have waited before it.
const SAVE_TIME: Duration = Duration::from_secs(2);
/// While Redis is silent those wait together that came within this time: up to so much longer.
const TOGETHER: Duration = Duration::from_millis(500);
/// How long somebody may be faster again and again: each time somebody's change is made, so all
/// of them have their turn.
const CONTEST_TIME: Duration = Duration::from_secs(10);
/// A long batch takes long to apply, and whoever is quicker is faster every time.
const LARGEST_BATCH: usize = 64;
/// So many bits of a version are drawn.
const DRAWN: u32 = 24;

/// What waits to be saved.
#[derive(Default)]
pub(super) struct Queue {
    waiting: RefCell<Vec<Waiting>>,
    busy: Cell<bool>,
    /// Whether Redis did not answer when it was asked last.
    silent: Cell<bool>,
}

impl Queue {
    fn next(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        let last = waiting.first().map(|first| first.since + TOGETHER);
        let belongs = |one: &&Waiting| !self.silent.get() || last.is_some_and(|at| one.since <= at);
        let length = waiting.iter().take(LARGEST_BATCH).take_while(belongs).count();
        waiting.drain(..length).collect()
    }
}

type Outcome = Result<Made, CommitRefused>;

struct Waiting {
    edit: Edit,
    now: Timestamp,
    since: Instant,
    reply: oneshot::Sender<Outcome>,
}

/// What an edit would come to, if what it was applied to is the newest version.
enum Verdict {
    Changed,
    Same,
    End,
    Refused(CommitRefused),
}

/// Why a batch was not written.
enum Unwritten {
    /// It changes nothing.
    Nothing,
    /// It would be as large as that.
    TooLarge(usize),
    /// Somebody was faster.
    Late,
}

/// What became of a batch.
enum Ended {
    /// These are the outcomes, and this the session.
    Settled(Rc<Opened>, Vec<Verdict>),
    /// It does not fit; which edit is to blame is not known.
    TooLarge(usize),
}

/// Saves the changes of sessions.
pub(super) struct Saver {
    records: Rc<Records>,
    lifetimes: Lifetimes,
}

impl Saver {
    pub(super) fn new(records: Rc<Records>, lifetimes: Lifetimes) -> Self {
        Self { records, lifetimes }
    }

    /// Merges the edit into the newest version of the session.
    pub(super) async fn change(
        self: &Rc<Self>,
        ticket: &Rc<Ticket>,
        seen: &Rc<Opened>,
        edit: Edit,
        now: Timestamp,
    ) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        let since = Instant::now();
        ticket.queue.waiting.borrow_mut().push(Waiting { edit, now, since, reply });
        if !ticket.queue.busy.replace(true) {
            // A task of its own: a browser that goes away takes nobody's change with it.
            let (saver, ticket, seen) = (self.clone(), ticket.clone(), seen.clone());
            tokio::task::spawn_local(async move { saver.save_all(&ticket, &seen).await });
        }
        outcome.await.unwrap_or_else(|_| Err(stopped().into()))
    }

    async fn save_all(&self, ticket: &Rc<Ticket>, seen: &Rc<Opened>) {
        loop {
            let batch = ticket.queue.next();
            if batch.is_empty() {
                return ticket.queue.busy.set(false);
            }
            self.save(ticket, seen, batch).await;
        }
    }

    /// Saves a batch, and tells everybody.
    async fn save(&self, ticket: &Rc<Ticket>, seen: &Rc<Opened>, batch: Vec<Waiting>) {
        let ended = self.settle(ticket, seen, &batch).await;
        ticket.queue.silent.set(matches!(ended, Err(CommitRefused::Unavailable(_))));
        match ended {
            Ok(Ended::Settled(opened, verdicts)) => {
                for (Waiting { reply, .. }, verdict) in batch.into_iter().zip(verdicts) {
                    let _ = reply.send(match verdict {
                        Verdict::Changed => {
                            Ok(Made::Held(Held { opened: opened.clone(), text: None }))
                        }
                        Verdict::Same => Ok(Made::Same),
                        Verdict::End => Ok(Made::End),
                        Verdict::Refused(refused) => Err(refused),
                    });
                }
            }
            Ok(Ended::TooLarge(_)) if batch.len() > 1 => {
                for waiting in batch {
                    Box::pin(self.save(ticket, seen, vec![waiting])).await;
                }
            }
            Ok(Ended::TooLarge(bytes)) => refuse(batch, || CommitRefused::TooLarge(bytes)),
            Err(CommitRefused::Unavailable(Unavailable(why))) => {
                refuse(batch, || Unavailable(why.clone()).into());
            }
            Err(CommitRefused::NoSession) => refuse(batch, || CommitRefused::NoSession),
            Err(_) => refuse(batch, || CommitRefused::Seal(SealError::Random)),
        }
    }

    /// Applies a batch to the newest version.
    async fn settle(
        &self,
        ticket: &Rc<Ticket>,
        seen: &Rc<Opened>,
        batch: &[Waiting],
    ) -> Result<Ended, CommitRefused> {
        let begun = Instant::now();
        let end = begun + CONTEST_TIME;
        let patience = |one: &Waiting| one.since + SAVE_TIME;
        let mut deadline = match batch.iter().map(patience).max() {
            Some(deadline) if ticket.queue.silent.get() => deadline,
            _ => begun + SAVE_TIME,
        };
        if deadline <= begun {
            return Err(Unavailable("it has not answered for too long".to_owned()).into());
        }
        let mut current = ticket.known().map_or_else(|| seen.clone(), |known| known.opened);
        loop {
            let (next, verdicts) = self.apply(&current.session, batch)?;
            let unwritten = match next {
                None => Unwritten::Nothing,
                Some(next) => {
                    let base = current.session.version;
                    match self.records.swap(ticket, base, next, deadline).await {
                        Ok(Swapped::Done(opened)) => return Ok(Ended::Settled(opened, verdicts)),
                        Ok(Swapped::Gone) => return Err(CommitRefused::NoSession),
                        Ok(Swapped::Newer) => Unwritten::Late,
                        Err(CommitRefused::TooLarge(bytes)) => Unwritten::TooLarge(bytes),
                        Err(error) => return Err(error),
                    }
                }
            };
            let read = self.records.read(ticket, deadline).await?;
            deadline = end.min(Instant::now() + SAVE_TIME);
            let same = match read {
                Read::Gone => return Err(CommitRefused::NoSession),
                Read::Newer(newer) => {
                    current = newer;
                    continue;
                }
                Read::Same(same) => same,
            };
            if same.session.version != current.session.version {
                current = same;
                continue;
            }
            // True of the newest version alone.
            match unwritten {
                Unwritten::Nothing => return Ok(Ended::Settled(same, verdicts)),
                Unwritten::TooLarge(bytes) => return Ok(Ended::TooLarge(bytes)),
                // What is written is on another server already than what is read.
                Unwritten::Late => self.records.read_elsewhere(deadline).await?,
            }
        }
    }

    /// The session with every edit of a batch that may be made, if any changes it. Nothing comes
    /// after an end.
    fn apply(
        &self,
        base: &Session,
        batch: &[Waiting],
    ) -> Result<(Option<Session>, Vec<Verdict>), CommitRefused> {
        let (mut session, mut changed, mut ended) = (base.clone(), false, false);
        let verdicts = batch.iter().map(|Waiting { edit, now, .. }| {
            if ended || !self.lifetimes.allow(base, *now) {
                return Verdict::Refused(CommitRefused::NoSession);
            }
            match edit.apply(&session) {
                Ok(Next::Session(next)) => {
                    session = next;
                    changed = true;
                    Verdict::Changed
                }
                Ok(Next::Same) => Verdict::Same,
                Ok(Next::End) => {
                    ended = true;
                    Verdict::End
                }
                Err(refused) => Verdict::Refused(refused.into()),
            }
        });
        let verdicts = verdicts.collect();
        session.version = next_version(base.version)?;
        Ok((changed.then_some(session), verdicts))
    }
}

/// The version after this one. Versions are counted, and told apart where two servers have each been
/// the primary for a while: by lower bits that are drawn.
fn next_version(version: u64) -> Result<u64, CommitRefused> {
    let mut drawn = [0; 8];
    let random = SystemRandom::new().fill(&mut drawn);
    random.map_err(|_| CommitRefused::Seal(SealError::Random))?;
    Ok(((version >> DRAWN) + 1) << DRAWN | u64::from_be_bytes(drawn) >> (64 - DRAWN))
}

fn refuse(batch: Vec<Waiting>, why: impl Fn() -> CommitRefused) {
    for Waiting { reply, .. } in batch {
        let _ = reply.send(Err(why()));
    }
}

fn stopped() -> Unavailable {
    Unavailable("the gateway is stopping".to_owned())
}
