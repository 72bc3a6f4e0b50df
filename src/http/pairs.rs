//! Values of any type from pairs of texts: path parameters, queries and forms, by serde.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Display;

use serde::de::value::{Error, MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Visitor};

/// The value whose fields have the names of the pairs. A name that comes several times is a sequence.
/// Errors: a text is not of its type, or one is missing, or there are several where one is expected: a reason for the
/// client.
pub(crate) fn from_pairs<'p, T: DeserializeOwned>(
    pairs: impl Iterator<Item = (Cow<'p, str>, Cow<'p, str>)>,
) -> Result<T, String> {
    let mut all: Vec<Values<'p>> = Vec::new();
    // A hash with random keys: the client chooses the names, and as many as fit into the body.
    let mut numbers: HashMap<Cow<'p, str>, usize> = HashMap::new();
    for (name, value) in pairs {
        match numbers.entry(name) {
            Entry::Occupied(number) => all[*number.get()].values.push(value),
            Entry::Vacant(vacant) => {
                all.push(Values { name: vacant.key().clone(), values: vec![value] });
                vacant.insert(all.len() - 1);
            }
        }
    }
    let all = all.into_iter().map(|values| (values.name.clone(), values));
    T::deserialize(MapDeserializer::new(all)).map_err(|error: Error| error.to_string())
}

/// The values of one name, at least one.
struct Values<'p> {
    name: Cow<'p, str>,
    values: Vec<Cow<'p, str>>,
}

impl<'p> Values<'p> {
    /// The only value.
    fn one(&mut self) -> Result<Cow<'p, str>, Error> {
        match (self.values.pop(), self.values.is_empty()) {
            (Some(value), true) => Ok(value),
            _ => Err(self.error("it is given several times")),
        }
    }

    fn error(&self, reason: impl Display) -> Error {
        Error::custom(format!("{}: {reason}", self.name))
    }
}

impl IntoDeserializer<'_, Error> for Values<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! parse {
    ($($method:ident => $visit:ident;)*) => {
        $(fn $method<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Error> {
            let value = self.one()?;
            visitor.$visit(value.parse().map_err(|error| self.error(error))?)
        })*
    };
}

impl<'de> Deserializer<'de> for Values<'_> {
    type Error = Error;

    parse! {
        deserialize_bool => visit_bool;
        deserialize_i8 => visit_i8;
        deserialize_i16 => visit_i16;
        deserialize_i32 => visit_i32;
        deserialize_i64 => visit_i64;
        deserialize_i128 => visit_i128;
        deserialize_u8 => visit_u8;
        deserialize_u16 => visit_u16;
        deserialize_u32 => visit_u32;
        deserialize_u64 => visit_u64;
        deserialize_u128 => visit_u128;
        deserialize_f32 => visit_f32;
        deserialize_f64 => visit_f64;
        deserialize_char => visit_char;
    }

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Error> {
        let value = self.one()?;
        visitor.visit_str(&value).map_err(|error: Error| self.error(error))
    }

    /// An empty field of a form is nothing.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.values.iter().all(|value| value.is_empty()) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Values { name, values } = self;
        let values = values.into_iter().map(|value| Values { name: name.clone(), values: vec![value] });
        visitor.visit_seq(SeqDeserializer::new(values))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let value = self.one()?;
        visitor.visit_enum((*value).into_deserializer()).map_err(|error: Error| self.error(error))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        str string bytes byte_buf unit unit_struct tuple tuple_struct map struct identifier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Order {
        Up,
        Down,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Id(u64);

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Search {
        q: String,
        id: Id,
        page: Option<u32>,
        #[serde(default)]
        tag: Vec<String>,
        #[serde(default)]
        all: bool,
        order: Option<Order>,
    }

    fn read<T: DeserializeOwned>(query: &str) -> Result<T, String> {
        from_pairs(form_urlencoded::parse(query.as_bytes()))
    }

    #[test]
    fn fields_are_of_their_types() {
        let search =
            read::<Search>("tag=a&q=%C3%BC+x&id=7&tag=b&order=down&page=3&all=true&unknown=1&unknown=2").unwrap();
        let tag = vec!["a".to_owned(), "b".to_owned()];
        let expected =
            Search { q: "ü x".to_owned(), id: Id(7), page: Some(3), tag, all: true, order: Some(Order::Down) };
        assert_eq!(search, expected);
        let least = read::<Search>("q=&id=0&page=").unwrap();
        assert_eq!((least.page, least.tag.len(), least.order), (None, 0, None));
        assert_eq!(read::<BTreeMap<String, f64>>("a=1.5&b=-2").unwrap().len(), 2);
    }

    #[test]
    fn as_many_names_as_fit_into_a_body_take_no_more_than_their_time() {
        let names = 200_000; // about 1 MiB; compared in pairs they take minutes
        let query = (0..names).map(|n| format!("{n:x}")).collect::<Vec<_>>().join("&");
        let began = Instant::now();
        assert_eq!(read::<BTreeMap<String, String>>(&query).unwrap().len(), names);
        assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    }

    #[test]
    fn the_field_that_does_not_fit_is_named() {
        let reason = |query| read::<Search>(query).unwrap_err();
        assert_eq!(reason("q=a"), "missing field `id`");
        assert_eq!(reason("q=a&id=b"), "id: invalid digit found in string");
        assert_eq!(reason("q=a&id=1&q=b"), "q: it is given several times");
        assert!(reason("q=a&id=1&order=left").starts_with("order: unknown variant `left`"));
        assert!(reason("q=a&id=1&page=-1").starts_with("page: "));
    }
}
