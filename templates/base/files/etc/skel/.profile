[ "${BASH-}" ] && [ -f "$HOME/.bashrc" ] && . "$HOME/.bashrc"
:
