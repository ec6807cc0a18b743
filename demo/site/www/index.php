<?php
// Who serves this page?
header('Content-Type: text/plain');
foreach ([
    'page' => 'PHP',
    'uid' => posix_getuid() . ' (effective ' . posix_geteuid() . ')',
    'gid' => posix_getgid() . ' (effective ' . posix_getegid() . ')',
    'groups' => implode(' ', posix_getgroups()),
    'pid' => getmypid(),
    'pool' => getenv('DEMO_POOL'),
    'sapi' => PHP_SAPI,
    'protocol' => $_SERVER['SERVER_PROTOCOL'] . (empty($_SERVER['HTTPS']) ? '' : ' over TLS'),
    'opcache' => function_exists('opcache_get_status') && opcache_get_status(false) ? 'on' : 'off',
] as $name => $value) {
    printf("%-9s %s\n", $name, $value);
}
