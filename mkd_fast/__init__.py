"""Knowledge distillation of multilingual transformers."""
