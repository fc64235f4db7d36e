"""Who trains and answers."""


def quiet() -> None:
    """Keep transformers' warnings and bars from burying the pipeline's own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
