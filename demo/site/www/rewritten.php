<?php
header('Content-Type: text/plain');
echo 'word ', $_GET['word'], ', charset ', ini_get('default_charset'), ", both from .htaccess\n";
