"""The papers' tables and figures as data (eval/protocols/papers/*.yaml), run at a scale and put beside theirs."""
