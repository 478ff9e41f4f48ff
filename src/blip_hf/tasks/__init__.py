# SPDX-License-Identifier: BSD-3-Clause
"""Options, fine-tuning and evaluation of each task, one module per task.

Each of `caption`, `retrieval`, `vqa` and `nlvr2` has `FinetuneOptions`, `EvaluateOptions`, `finetune(options, arguments)` and
`evaluate(options)`; `pretrain` has `PretrainOptions` and `pretrain(options, arguments)`. Importing a module is quick: its
functions import torch and transformers when they are called.
"""
