"""What people run besides the stages: `python -m stages.commands.NAME`."""
