# Read by every login shell, those of commands included: keep it quick.
case $- in
*i*) alias ls='ls --color=auto' ll='ls -l' grep='grep --color=auto' ;;
esac
