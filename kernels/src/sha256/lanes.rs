//! The 64 rounds over vectors whose lanes are messages: one text for every width.

/// Runs the rounds of one block: `$state` are the eight words of the chaining value, `$w` the first
/// sixteen words of the schedule, both vectors with a lane a message.
///
/// In scope where it is used, on these vectors: `add`, `round_constant(t)`, the functions of FIPS
/// 180-4, 4.1.2: `ch`, `maj`, `big_sigma0`, `big_sigma1`, `small_sigma0`, `small_sigma1`.
///
/// A macro, since each width calls instructions that only its own functions may be compiled for.
macro_rules! rounds {
    ($state:ident, $w:ident) => {{
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = $state;
        let mut t = 0;
        while t < 48 {
            crate::sha256::lanes::rounds!(@sixteen scheduled, t, $w; a b c d e f g h);
            t += 16;
        }
        crate::sha256::lanes::rounds!(@sixteen last, t, $w; a b c d e f g h);
        let after = [a, b, c, d, e, f, g, h];
        for (word, after) in $state.iter_mut().zip(after) {
            *word = add(*word, after);
        }
    }};
    (@sixteen $kind:ident, $t:ident, $w:ident;
        $a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident) => {
        crate::sha256::lanes::rounds!(@eight $kind, 0, $t, $w; $a $b $c $d $e $f $g $h);
        crate::sha256::lanes::rounds!(@eight $kind, 8, $t, $w; $a $b $c $d $e $f $g $h);
    };
    // Instead of moving the eight words along, each round names them one place on.
    (@eight $kind:ident, $i:literal, $t:ident, $w:ident;
        $a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident) => {
        crate::sha256::lanes::rounds!(@one $kind, $i, $t, $w; $a $b $c $d $e $f $g $h);
        crate::sha256::lanes::rounds!(@one $kind, $i + 1, $t, $w; $h $a $b $c $d $e $f $g);
        crate::sha256::lanes::rounds!(@one $kind, $i + 2, $t, $w; $g $h $a $b $c $d $e $f);
        crate::sha256::lanes::rounds!(@one $kind, $i + 3, $t, $w; $f $g $h $a $b $c $d $e);
        crate::sha256::lanes::rounds!(@one $kind, $i + 4, $t, $w; $e $f $g $h $a $b $c $d);
        crate::sha256::lanes::rounds!(@one $kind, $i + 5, $t, $w; $d $e $f $g $h $a $b $c);
        crate::sha256::lanes::rounds!(@one $kind, $i + 6, $t, $w; $c $d $e $f $g $h $a $b);
        crate::sha256::lanes::rounds!(@one $kind, $i + 7, $t, $w; $b $c $d $e $f $g $h $a);
    };
    (@one $kind:ident, $i:expr, $t:ident, $w:ident;
        $a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident) => {
        let first = add(
            add(add($h, round_constant($t + $i)), $w[$i]),
            add(big_sigma1($e), ch($e, $f, $g)),
        );
        $d = add($d, first);
        $h = add(first, add(big_sigma0($a), maj($a, $b, $c)));
        crate::sha256::lanes::rounds!(@schedule $kind, $i, $w);
    };
    // Word t has done its work: word t + 16 takes its place.
    (@schedule scheduled, $i:expr, $w:ident) => {
        $w[$i] = add(
            add($w[$i], small_sigma0($w[($i + 1) % 16])),
            add($w[($i + 9) % 16], small_sigma1($w[($i + 14) % 16])),
        );
    };
    (@schedule last, $i:expr, $w:ident) => {};
}
pub(super) use rounds;
