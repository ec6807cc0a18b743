<?php
// Tries to read a file of the other site.
header('Content-Type: text/plain');
$own = dirname(__DIR__);
foreach (glob(dirname($own) . '/{alice,bob}', GLOB_BRACE) as $home) {
    $text = @file_get_contents("$home/www/static.txt");
    printf("%-6s %s\n", basename($home), $text === false ? 'refused' : 'readable');
}
