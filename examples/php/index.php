<?php
// A legacy page behind Vestibule: who is it, and what does the session hold? One header each way.
// Run it: php -S 127.0.0.1:9000 -t examples/php

$session = json_decode($_SERVER['HTTP_X_SESSION'] ?? '{}', true);

if (isset($_GET['theme'])) {
    header('X-Session-Update: ' . json_encode(['theme' => $_GET['theme'], 'views' => ['$add' => 1]]));
}

header('Content-Type: text/plain; charset=utf-8');
echo 'Hello ', $session['user']['name'] ?? 'stranger', "\n";
echo 'theme: ', $session['theme'] ?? 'none', "\n";
echo 'views: ', $session['views'] ?? 0, "\n";
