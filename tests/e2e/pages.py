"""Scripts that the tests put into document roots, and what else they have in common."""

# For the scripts that do by native code what PHP does not offer.
FFI = "<IfModule php_module>\nphp_admin_value ffi.enable 1\n</IfModule>\n"

# What /proc says of the process that runs the script, as JSON.
WHO_PHP = """
<?php
header('Content-Type: application/json');
$s = [];
foreach (file('/proc/self/status') as $l) { [$k, $v] = explode(':', $l, 2); $s[$k] = trim($v); }
echo json_encode([
    'pid' => getmypid(), 'status' => $s,
    'title' => str_replace("\\0", ' ', (string)@file_get_contents('/proc/self/cmdline')),
    'posix' => function_exists('posix_geteuid') ? posix_geteuid() : null,
    'site' => $_SERVER['SERVER_NAME'],
]);
"""

WHO_CGI = """
#!/bin/sh
echo 'Content-Type: text/plain'
echo
cat /proc/self/status
"""

WHO_LUA = """
function handle(r)
    r.content_type = "text/plain"
    for line in io.lines("/proc/self/status") do r:puts(line .. "\\n") end
    return apache2.OK
end
"""

# The complete environment, NUL-separated as the kernel has it.
ENV_CGI = """
#!/bin/sh
printf 'Content-Type: application/octet-stream\\r\\n\\r\\n'
exec /usr/bin/env -0
"""

SERVER_PHP = """
<?php
header('Content-Type: application/json');
echo json_encode($_SERVER, JSON_INVALID_UTF8_SUBSTITUTE | JSON_PARTIAL_OUTPUT_ON_ERROR);
"""

# Sends the body back while it arrives; memory stays small whatever its size.
ECHO_PHP = """
<?php
set_time_limit(0);
ini_set('zlib.output_compression', '0');
while (ob_get_level()) ob_end_clean();
header('Content-Type: application/octet-stream');
$in = fopen('php://input', 'rb');
while (!feof($in)) { $d = fread($in, 65536); if ($d === false) break; echo $d; flush(); }
"""

ECHO_CGI = """
#!/bin/sh
printf 'Content-Type: application/octet-stream\\r\\n\\r\\n'
exec cat
"""

# Reads the body, says how much arrived and its hash.
DIGEST_PHP = """
<?php
header('Content-Type: application/json');
$c = hash_init('sha256'); $n = 0;
$in = fopen('php://input', 'rb');
while (!feof($in)) { $d = fread($in, 65536); $n += strlen($d); hash_update($c, $d); }
echo json_encode(['bytes' => $n, 'sha256' => hash_final($c), 'pid' => getmypid()]);
"""

SLEEP_PHP = """
<?php
header('Content-Type: application/json');
$start = microtime(true);
usleep((int)(1e6 * (float)($_GET['s'] ?? 1)));
echo json_encode(['pid' => getmypid(), 'start' => $start, 'end' => microtime(true)]);
"""


def usual_pages(site):
    site.write("who.php", WHO_PHP)
    site.write("sleep.php", SLEEP_PHP)
    site.write("text.txt", "text")


def at_once(answers):
    """How many of the sleep.php ran at the same time, by their own clocks."""
    marks = sorted([(a["start"], 1) for a in answers] + [(a["end"], -1) for a in answers])
    level = most = 0
    for _, step in marks:
        level += step
        most = max(most, level)
    return most


def uid_of(text):
    """The four uids in the text of a /proc/PID/status."""
    for line in text.splitlines():
        if line.startswith("Uid:"):
            return [int(x) for x in line.split()[1:]]
    raise AssertionError(f"no Uid line in {text!r}")
