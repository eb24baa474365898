"""The training loop and its parts: distillation module, optimizer, checkpoint, log, schedule and balance."""
