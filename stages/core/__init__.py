"""What every command needs, whatever it does: errors, files, paths, locks. Uses nothing else of this project."""
