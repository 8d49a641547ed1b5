"""RAIN decoding: a frozen language model searches over its next token sets, scores completions, and rewinds.

Source: "RAIN: Your Language Models Can Align Themselves without Finetuning", arXiv 2309.07124.

Data flows from prompts to tokens in one direction. `api` builds prompts and starts the engine. Each prompt has its own
search; the engine batches the requests of all searches and answers them. The results are records.

- `config.py`: settings, published presets, and deviations from the released code.
- `api`: entry points (`strategy="rain"`, `custom_generate`, logits processor, exported folder, jobs over files). It
  checks what users pass and builds prompts from it.
- `search`: the tree and the search of one prompt, which yields requests and receives answers. It knows no model.
- `engine`: the step loop over all searches: batches their decode requests into forward passes, samples tokens, decides
  where texts end.
- `server`: the same with a model on a vLLM server: each search is a coroutine, and its requests are HTTP requests.
- `kv_cache`: keys and values of all trees, and the forward passes on them.
- `scorers`: values of completions, from a function, a reward model or the model itself; text embeddings.
- `results`: records (tree, answer, costs), and their views.

A subpackage imports only earlier ones: `config` < `search` < `kv_cache` < `scorers`, `results` < `engine` <
`server` < `api`.
"""
