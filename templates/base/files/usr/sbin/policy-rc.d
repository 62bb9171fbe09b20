#!/bin/sh
# Pid 1 of a sandbox is no init system: packages must not start their services on installation.
exit 101
