"""Templates: saved virtual machines that later ones start from."""
