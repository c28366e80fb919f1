//! Layer 2: how a delta's positions, codes and book are laid out in bytes, and what is refused.
