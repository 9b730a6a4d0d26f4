//! A workspace's branding on pages: the white-label settings that pages display.

use std::{fmt, str::FromStr};

use data_encoding::BASE64;

use super::{ValidationError, fields::Fields, text};

/// The branding of a workspace, from `brand_name`, `primary_color` and `logo` of its settings.
///
/// Clients can store any JSON in these fields; invalid values are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brand {
    /// The name to display instead of the workspace's name.
    pub name: Option<String>,
    /// The color of buttons.
    pub color: Option<Color>,
    /// The logo.
    pub logo: Option<Logo>,
}

impl Brand {
    /// The settings field of the name.
    pub const NAME: &str = "brand_name";
    /// The settings field of the color.
    pub const COLOR: &str = "primary_color";
    /// The settings field of the logo.
    pub const LOGO: &str = "logo";

    /// Reads the branding from a workspace's settings.
    #[must_use]
    pub fn from_settings(settings: &Fields) -> Self {
        let name = settings.get_text(Self::NAME);
        Self {
            name: name.and_then(|name| text::validate_name(Self::NAME, &name).ok()),
            color: settings.get_text(Self::COLOR).and_then(|color| color.parse().ok()),
            logo: settings.get_text(Self::LOGO).and_then(|logo| logo.parse().ok()),
        }
    }
}

/// An sRGB color.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Color([u8; 3]);

impl Color {
    /// Returns the text color for this background: black or white. The one with the
    /// higher contrast ratio is used (WCAG 2.2).
    #[must_use]
    pub fn text_color(self) -> Self {
        let [black, white] = [Self([0; 3]), Self([255; 3])];
        if contrast_ratio(self, black) >= contrast_ratio(self, white) { black } else { white }
    }

    /// Returns the relative luminance (WCAG 2.2), from 0 to 1.
    fn luminance(self) -> f64 {
        let linear = |channel: u8| {
            let channel = f64::from(channel) / 255.0;
            if channel <= 0.04045 { channel / 12.92 } else { ((channel + 0.055) / 1.055).powf(2.4) }
        };
        let [red, green, blue] = self.0.map(linear);
        0.2126_f64.mul_add(red, 0.7152_f64.mul_add(green, 0.0722 * blue))
    }
}

/// Returns the contrast ratio of two colors (WCAG 2.2), from 1 to 21.
fn contrast_ratio(one: Color, other: Color) -> f64 {
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
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.is_ascii());
        let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let [_, red, green, blue] = number
            .filter(|_| !text.contains('+'))
            .ok_or_else(|| ValidationError::new("must be a color such as #0b7285"))?
            .to_be_bytes();
        Ok(Self([red, green, blue]))
    }
}

/// A logo image, as a `data:` URL (RFC 2397): pages load no images from other sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logo(String);

impl Logo {
    /// Maximum size of the image file in bytes. Every page contains the image.
    pub const MAX_BYTES: usize = 16 * 1024;

    /// Creates a logo from the content of a PNG, JPEG, GIF or WebP file.
    ///
    /// # Errors
    /// [`ValidationError`] if the file has another format or is larger than [`Self::MAX_BYTES`].
    pub fn from_file(bytes: &[u8]) -> Result<Self, ValidationError> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(ValidationError::new("must be an image of at most 16 KiB"));
        }
        let kind = match bytes {
            [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => "png",
            [0xff, 0xd8, 0xff, ..] => "jpeg",
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => "gif",
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "webp",
            // SVG is excluded: it can contain scripts and links.
            _ => return Err(ValidationError::new("must be a PNG, JPEG, GIF or WebP image")),
        };
        Ok(Self(format!("data:image/{kind};base64,{}", BASE64.encode(bytes))))
    }

    /// Returns the `data:` URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Logo {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        let invalid = || ValidationError::new("must be an image, as a data: URL with base64");
        let (_, data) = text
            .strip_prefix("data:image/")
            .and_then(|rest| rest.split_once(";base64,"))
            .ok_or_else(invalid)?;
        Self::from_file(&BASE64.decode(data.as_bytes()).map_err(|_| invalid())?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and so on";

    #[test]
    fn invalid_branding_values_are_ignored() {
        let brand = |json: &str| Brand::from_settings(&serde_json::from_str(json).unwrap());
        let logo = Logo::from_file(PNG).unwrap();
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
    fn image_format_is_detected_from_content() {
        assert!(Logo::from_file(PNG).is_ok());
        assert!(
            Logo::from_file(b"\xff\xd8\xff\xe0").unwrap().as_str().starts_with("data:image/jpeg;")
        );
        for other in [&b""[..], b"<svg/>", b"<html>", b"\x89PNG", "a".repeat(20_000).as_bytes()] {
            assert!(Logo::from_file(other).is_err());
        }
        let large = [PNG, &[0; Logo::MAX_BYTES]].concat();
        assert!(Logo::from_file(&large).is_err());
    }

    proptest! {
        #[test]
        fn text_color_has_sufficient_contrast(channels in any::<[u8; 3]>()) {
            let color = Color(channels);
            prop_assert!(contrast_ratio(color, color.text_color()) >= 4.5);
            prop_assert_eq!(color.to_string().parse(), Ok(color));
        }
    }
}
