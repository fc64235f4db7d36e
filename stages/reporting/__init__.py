"""What people read: the report, the review, the model card, and their charts."""
