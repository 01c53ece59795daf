"""Search at test time: beams, votes, process scores and trees.

The searches themselves know no model, only functions handed in: `beam`, `mcts`, `best_first`, `votes`, `pass_at_k`.
`solve` brings them together with a language model and, where there is one, a reward model.
"""
