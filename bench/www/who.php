<?php
echo posix_getuid(), " ", PHP_SAPI, " ", ini_get("opcache.enable"), "\n";
