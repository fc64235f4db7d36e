"""A fine-tuning service on this machine that speaks OpenAI's API and trains with the Unsloth backend.

Everything it keeps is in one folder, `.state/endpoint` as started by `stages.commands.serve`.
"""
