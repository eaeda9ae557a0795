//! The one EXIF field we write and read: `UserComment`, where A1111 keeps the parameters of JPEG and WebP files.

const PREFIX: &[u8] = b"UNICODE\0";
const EXIF_IFD: u16 = 0x8769;
const USER_COMMENT: u16 = 0x9286;

/// A TIFF block with nothing but the comment, in UTF-16.
pub(super) fn with_comment(text: &str) -> Vec<u8> {
    let comment: Vec<u8> = PREFIX
        .iter()
        .copied()
        .chain(text.encode_utf16().flat_map(u16::to_be_bytes))
        .collect();
    // Header (8 bytes), then two directories of one entry each (18 bytes), then the comment.
    let mut block = b"MM\0*\0\0\0\x08".to_vec();
    directory(&mut block, EXIF_IFD, 4, 1, 26);
    directory(&mut block, USER_COMMENT, 7, comment.len() as u32, 44);
    block.extend(comment);
    block
}

fn directory(block: &mut Vec<u8>, tag: u16, kind: u16, count: u32, value: u32) {
    block.extend(1u16.to_be_bytes());
    block.extend(tag.to_be_bytes());
    block.extend(kind.to_be_bytes());
    block.extend(count.to_be_bytes());
    block.extend(value.to_be_bytes());
    block.extend(0u32.to_be_bytes());
}

/// The comment of a block that A1111 or [`with_comment`] wrote.
pub(super) fn comment(block: &[u8]) -> Option<String> {
    let start = block.windows(PREFIX.len()).position(|w| w == PREFIX)? + PREFIX.len();
    let units: Vec<u16> = block[start..]
        .chunks_exact(2)
        .map(|b| u16::from_be_bytes([b[0], b[1]]))
        .take_while(|u| *u != 0)
        .collect();
    String::from_utf16(&units).ok()
}
