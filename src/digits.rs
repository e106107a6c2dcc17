//! Digits, read and written. Numbers and addresses are written by hand, for every request pays for
//! them: `write!` would take several times as long.

use std::fmt::Write;
use std::net::IpAddr;

/// In decimal digits.
pub fn number(out: &mut String, number: u64) {
    if number >= 10 {
        self::number(out, number / 10);
    }
    out.push(char::from(b'0' + u8::try_from(number % 10).unwrap_or_default()));
}

/// As `Display` writes it.
pub fn address(out: &mut String, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    out.push('.');
                }
                number(out, octet.into());
            }
        }
        // Writing to a string does not fail.
        IpAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

/// The value of a hexadecimal digit, in either case.
pub(crate) fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_display() {
        for number in [0, 7, 10, 99, 100, 65_535, u64::MAX] {
            let mut out = String::new();
            self::number(&mut out, number);
            assert_eq!(out, number.to_string());
        }
        for text in ["0.0.0.0", "10.1.100.255", "::1", "2001:db8::7"] {
            let mut out = String::new();
            address(&mut out, text.parse().unwrap());
            assert_eq!(out, text);
        }
    }
}
