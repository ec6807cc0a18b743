<?php
// Hangs until the benchmark takes the file away; with ?first after its first byte.
header("Content-Type: text/plain");
if (isset($_GET["first"])) {
    echo "first\n";
    flush();
}
do {
    sleep(1);
    clearstatcache();
} while (file_exists(__DIR__ . "/hold"));
echo "last\n";
