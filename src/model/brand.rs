//! How a workspace looks to people: its white-label settings, as far as pages show them.

use std::{fmt, str::FromStr};

use data_encoding::BASE64;

use super::{Invalid, fields::Fields, text};

/// What `brand_name`, `primary_color` and `logo` of the settings say. Clients may have stored anything there: what is
/// no name, colour or picture is not shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brand {
    /// In place of the workspace's name.
    pub name: Option<String>,
    /// In place of the colour of buttons.
    pub color: Option<Color>,
    /// A picture.
    pub logo: Option<Logo>,
}

impl Brand {
    /// The field that holds the name.
    pub const NAME: &str = "brand_name";
    /// The field that holds the colour.
    pub const COLOR: &str = "primary_color";
    /// The field that holds the picture.
    pub const LOGO: &str = "logo";

    /// Reads the settings.
    #[must_use]
    pub fn of(settings: &Fields) -> Self {
        let name = settings.text(Self::NAME);
        Self {
            name: name.and_then(|name| text::name(Self::NAME, &name).ok()),
            color: settings.text(Self::COLOR).and_then(|color| color.parse().ok()),
            logo: settings.text(Self::LOGO).and_then(|logo| logo.parse().ok()),
        }
    }
}

/// A colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Color([u8; 3]);

impl Color {
    /// Black or white, whichever is easier to read on it (WCAG 2.2, contrast ratio).
    #[must_use]
    pub fn ink(self) -> Self {
        let [black, white] = [Self([0; 3]), Self([255; 3])];
        if contrast(self, black) >= contrast(self, white) { black } else { white }
    }

    /// Relative luminance (WCAG 2.2), from 0 to 1.
    fn luminance(self) -> f64 {
        let linear = |part: u8| {
            let part = f64::from(part) / 255.0;
            if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        };
        let [red, green, blue] = self.0.map(linear);
        0.2126_f64.mul_add(red, 0.7152_f64.mul_add(green, 0.0722 * blue))
    }
}

fn contrast(one: Color, other: Color) -> f64 {
    let (one, other) = (one.luminance(), other.luminance());
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [red, green, blue] = self.0;
        write!(f, "#{red:02x}{green:02x}{blue:02x}")
    }
}

impl FromStr for Color {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.is_ascii());
        let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let [_, red, green, blue] = number
            .filter(|_| !text.contains('+'))
            .ok_or_else(|| Invalid::new("must be a colour, such as #0b7285"))?
            .to_be_bytes();
        Ok(Self([red, green, blue]))
    }
}

/// A picture, as a `data:` URL (RFC 2397): pages show nothing from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logo(String);

impl Logo {
    /// Bytes of a picture, at most. It stands in every page.
    pub const MAX_BYTES: usize = 16 * 1024;

    /// Takes a picture as its file has it: PNG, JPEG, GIF or WebP.
    ///
    /// # Errors
    /// When it is no such picture, or too large.
    pub fn of_file(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(Invalid::new("must be a picture of at most 16 KiB"));
        }
        let kind = match bytes {
            [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => "png",
            [0xff, 0xd8, 0xff, ..] => "jpeg",
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => "gif",
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "webp",
            // No SVG: it may hold scripts and links.
            _ => return Err(Invalid::new("must be a PNG, JPEG, GIF or WebP picture")),
        };
        Ok(Self(format!("data:image/{kind};base64,{}", BASE64.encode(bytes))))
    }

    /// The `data:` URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Logo {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::new("must be a picture, as a data: URL with base64");
        let (_, data) = text
            .strip_prefix("data:image/")
            .and_then(|rest| rest.split_once(";base64,"))
            .ok_or_else(invalid)?;
        Self::of_file(&BASE64.decode(data.as_bytes()).map_err(|_| invalid())?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and so on";

    #[test]
    fn what_is_no_name_color_or_picture_is_not_shown() {
        let brand = |json: &str| Brand::of(&serde_json::from_str(json).unwrap());
        let logo = Logo::of_file(PNG).unwrap();
        let full = format!(
            r##"{{"brand_name": "Acme", "primary_color": "#0B7285", "logo": "{}", "more": 1}}"##,
            logo.as_str()
        );
        let wanted = Brand {
            name: Some("Acme".to_owned()),
            color: Some("#0b7285".parse().unwrap()),
            logo: Some(logo),
        };
        assert_eq!(brand(&full), wanted);
        for nothing in [
            "{}",
            r#"{"brand_name": 7, "primary_color": ["red"], "logo": null}"#,
            r#"{"brand_name": "", "primary_color": "red;}", "logo": "https://evil.example/a.png"}"#,
            r##"{"primary_color": "#+b7285", "logo": "data:image/svg+xml;base64,PHN2Zy8+"}"##,
            r##"{"primary_color": "#0b72é", "logo": "data:image/png;base64,\"><script>"}"##,
        ] {
            assert_eq!(brand(nothing), Brand::default(), "{nothing}");
        }
    }

    #[test]
    fn pictures_are_told_by_what_is_in_them() {
        assert!(Logo::of_file(PNG).is_ok());
        assert!(
            Logo::of_file(b"\xff\xd8\xff\xe0").unwrap().as_str().starts_with("data:image/jpeg;")
        );
        for other in [&b""[..], b"<svg/>", b"<html>", b"\x89PNG", "a".repeat(20_000).as_bytes()] {
            assert!(Logo::of_file(other).is_err());
        }
        let large = [PNG, &[0; Logo::MAX_BYTES]].concat();
        assert!(Logo::of_file(&large).is_err());
    }

    proptest! {
        #[test]
        fn every_color_has_an_ink_that_reads_well(parts in any::<[u8; 3]>()) {
            let color = Color(parts);
            prop_assert!(contrast(color, color.ink()) >= 4.5);
            prop_assert_eq!(color.to_string().parse(), Ok(color));
        }
    }
}
