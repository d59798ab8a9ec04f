"""The commands of `tokenizer-tools`, one module each: options in, one line for what cannot be worked with."""
