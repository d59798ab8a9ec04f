"""Train a sentencepiece BPE model and turn one into a Hugging Face fast tokenizer with the same ids."""
