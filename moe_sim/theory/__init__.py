"""What can be said without sampling."""
