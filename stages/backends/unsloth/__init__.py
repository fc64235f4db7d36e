"""Open models on this machine: training with Unsloth, inference with plain transformers and peft."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.backends import protocol
    from stages.backends.unsloth import base, doctor, export, inference, reader, training

    # mypy rejects a module that does not match its protocol.
    _BASE: protocol.Base = base
    _READER: protocol.Reader = reader
    _TRAINING: protocol.Training = training
    _INFERENCE: protocol.Inference = inference
    _EXPORT: protocol.Export = export
    _DOCTOR: protocol.Doctor = doctor
