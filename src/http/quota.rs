//! How many requests a minute somebody may send: a bucket each, which fills up again as time goes by.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Most that are told apart; those who have not come for a minute are forgotten.
const KNOWN_MAX: usize = 1 << 14;

/// Buckets by whoever they are of.
pub struct Buckets<K> {
    per_minute: u32,
    /// What is left in each, and when that was so.
    known: Mutex<HashMap<K, (f64, Instant)>>,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Each holds as many requests as a minute brings.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, known: Mutex::default() }
    }

    /// Takes one request of `key` at `now`; else gives the whole seconds after which there is one.
    ///
    /// # Errors
    ///
    /// At least 1: too many came.
    pub fn take(&self, key: K, now: Instant) -> Result<(), u64> {
        let (most, a_second) = (f64::from(self.per_minute), f64::from(self.per_minute) / 60.0);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX && !known.contains_key(&key) {
            known.retain(|_, (_, at)| now.saturating_duration_since(*at).as_secs() < 60);
            if known.len() >= KNOWN_MAX {
                return Err(60);
            }
        }
        let (left, at) = known.entry(key).or_insert((most, now));
        let since = now.saturating_duration_since(*at).as_secs_f64();
        (*left, *at) = ((*left + since * a_second).min(most), now);
        if *left >= 1.0 {
            *left -= 1.0;
            return Ok(());
        }
        let wait = (1.0 - *left) / a_second;
        // Without any a minute there never is one.
        Err(if wait.is_finite() { wait.ceil().max(1.0) as u64 } else { 3_600 })
    }
}

/// Whose bucket an address is in: an IPv6 one shares that of its network, which one host owns.
pub fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_fills_up_again() {
        let buckets = Buckets::new(120);
        let start = Instant::now();
        for _ in 0..120 {
            assert_eq!(buckets.take("a", start), Ok(()));
        }
        assert_eq!(buckets.take("a", start), Err(1));
        assert_eq!(buckets.take("b", start), Ok(()), "another's");
        let later = start + Duration::from_millis(500);
        assert_eq!((buckets.take("a", later), buckets.take("a", later)), (Ok(()), Err(1)));
        let hour = start + Duration::from_secs(3600);
        let taken = (0..1000).filter(|_| buckets.take("a", hour).is_ok()).count();
        assert_eq!(taken, 120, "it holds no more than a minute brings");
        assert_eq!(Buckets::new(0).take("a", start), Ok(()).and(Err(3_600)));
    }

    #[test]
    fn what_is_known_is_bounded_and_forgotten() {
        let buckets = Buckets::new(60);
        let start = Instant::now();
        assert!((0..KNOWN_MAX).all(|key| buckets.take(key, start).is_ok()));
        assert_eq!(buckets.take(KNOWN_MAX, start), Err(60));
        assert_eq!(buckets.take(0, start), Ok(()), "who is known is not shut out");
        assert_eq!(buckets.take(KNOWN_MAX, start + Duration::from_secs(61)), Ok(()));
        assert!(buckets.known.lock().unwrap().len() <= KNOWN_MAX);
    }

    #[test]
    fn addresses_of_one_network_share_a_bucket() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.2"), of("192.0.2.1"));
    }
}
