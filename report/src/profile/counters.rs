//! KVM's counters in a profile.

use crate::profile::check_text;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// Reads KVM's counters by name. A name that occurs twice is an error, which the derived code would not notice.
pub(super) fn distinct<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<BTreeMap<String, u64>>, D::Error> {
    /// KVM has about 50 for a vCPU.
    const MOST: usize = 4096;

    struct CounterVisitor;

    impl<'de> Visitor<'de> for CounterVisitor {
        type Value = Option<BTreeMap<String, u64>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("KVM's counters by name, or null")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<M: MapAccess<'de>>(self, mut from: M) -> Result<Self::Value, M::Error> {
            let mut counters = BTreeMap::new();
            while let Some((name, value)) = from.next_entry::<String, u64>()? {
                if counters.len() >= MOST {
                    return Err(M::Error::custom(format!("more than {MOST} KVM counters")));
                }
                check_text("kernel", &name).map_err(M::Error::custom)?;
                if counters.insert(name, value).is_some() {
                    return Err(M::Error::custom("the same KVM counter twice"));
                }
            }
            Ok(Some(counters))
        }
    }

    from.deserialize_any(CounterVisitor)
}
