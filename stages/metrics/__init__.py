"""What is measured of answers, and how two models or two runs are compared."""
