"""containerd's side: the launcher, the daemon, and the services that it answers."""
