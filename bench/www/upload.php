<?php
// Reads the whole body, as an application would.
echo strlen(file_get_contents("php://input")), "\n";
