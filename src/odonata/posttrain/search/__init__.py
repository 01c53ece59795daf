"""Search at test time: beams, votes, process scores and trees. It knows no model, only functions handed in."""
