"""The gated delta rule: a state of constant size in place of keys."""
