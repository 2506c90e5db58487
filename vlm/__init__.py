"""Train vision-language models in numbered stages: tokenizer, assembly, shards, pretraining, finetuning, evaluation."""
