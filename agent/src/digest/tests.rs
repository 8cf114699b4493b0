//! What digests of real and made-up files have to say.

use std::io::Cursor;

use proptest::prelude::*;

use super::*;

fn digest(format: &str, bytes: &[u8]) -> Digest {
    of_file(Cursor::new(bytes), Format::named(format)).unwrap()
}

/// Gives few bytes at a time.
struct Slow<'a>(Cursor<&'a [u8]>);

impl Read for Slow<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let room = to.len().min(7);
        self.0.read(&mut to[..room])
    }
}

impl Seek for Slow<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

const NAMES: [&str; 10] = ["step", "iges", "stl", "glb", "gltf", "obj", "wrl", "ply", "3mf", "brep"];

/// As FreeCAD 0.20.2 wrote it, shortened.
const STEP: &str = "ISO-10303-21;
HEADER;
FILE_DESCRIPTION(('FreeCAD Model'),'2;1');
FILE_NAME('Open CASCADE Shape Model','2026-11-25T17:58:54',('FreeCAD'),(
    'FreeCAD'),'Open CASCADE STEP processor 7.6','FreeCAD','Unknown');
FILE_SCHEMA(('AUTOMOTIVE_DESIGN { 1 0 10303 214 1 1 1 1 }'));
ENDSEC;
DATA;
#7 = PRODUCT('it''s; 1','x','',(#8));
#11 = CALENDAR_DATE(2026,25,11);
#12 = CARTESIAN_POINT('',(0.,0.,30.));
ENDSEC;
END-ISO-10303-21;
";

const IGES: &str = "                                                                        S0000001
,,31HOpen CASCADE IGES processor 7.6,13HFilename.iges,                  G0000001
16HOpen CASCADE 7.6,31HOpen CASCADE IGES processor 7.6,32,308,15,308,15,G0000002
,1.,2,2HMM,1,0.01,15H20261125.175854,1E-07,30.,,,11,0,                  G0000003
15H20261125.175854,;                                                    G0000004
     402       1       0       0       0       0       0       000000000D0000001
     402       0       0       1       1                               0D0000002
110,10.,10.,10.,0.,10.,10.;                                      0000001P0000001
S      1G      4D      2P      1                                        T0000001
";

fn glb(json: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"glTF\x02\0\0\0".to_vec();
    let length = 20 + json.len() + data.len();
    bytes.extend(u32::try_from(length).unwrap().to_le_bytes());
    bytes.extend(u32::try_from(json.len()).unwrap().to_le_bytes());
    bytes.extend(b"JSON");
    bytes.extend(json.bytes());
    bytes.extend(data);
    bytes
}

/// An archive of one entry without its data, which is never read.
fn archive(name: &str, crc: u32, time: u16) -> Vec<u8> {
    let mut bytes = b"PK\x01\x02".to_vec();
    bytes.extend([0; 8]);
    bytes.extend(time.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(crc.to_le_bytes());
    bytes.extend([9, 0, 0, 0, 9, 0, 0, 0]);
    bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(name.bytes());
    let length = u32::try_from(bytes.len()).unwrap();
    bytes.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    bytes.extend(length.to_le_bytes());
    bytes.extend([0; 6]);
    bytes
}

/// Each with another value of a field that is volatile, and with one that is not.
#[test]
fn volatile_fields_do_not_count_and_all_others_do() {
    let json = r#"{"asset":{"generator":"A 1","version":"2.0"},"buffers":[{"byteLength":4,"uri":"a.bin"}]}"#;
    for (format, text, volatile, not) in [
        ("step", STEP, ("17:58:54", "18:00:00"), ("30.", "31.")),
        ("step", STEP, ("(2026,25,11)", "(2027,26,12)"), ("it''s; 1", "it''s; 2")),
        ("step", STEP, ("('FreeCAD'),(", "('Jane'),("), ("'FreeCAD Model'", "'Other Model'")),
        ("step", STEP, ("30.));\n", "30. ) ) ;\n/* x'; */"), ("AUTOMOTIVE", "CONFIG")),
        ("iges", IGES, ("175854,1E", "180000,1E"), ("2HMM", "2HIN")),
        ("iges", IGES, ("175854,;", "180000,;"), ("10.,10.,10.,0.", "10.,10.,11.,0.")),
        ("stl", "solid a\n facet normal 0 0 1\nendsolid a\n", ("solid a", "solid b"), ("0 0 1", "0 1 0")),
        ("obj", "# by A\nmtllib a.mtl\nv 1 2 3\n", ("# by A", "# by B"), ("v 1", "v 2")),
        ("obj", "# by A\nmtllib a.mtl\nv 1 2 3\n", ("a.mtl", "b.mtl"), ("3", "4")),
        ("off", "OFF\n# by A\n1 0 0\n", ("by A", "by B"), ("1 0", "2 0")),
        ("wrl", "#VRML V2.0 utf8\n# now\nShape {}\n", ("now", "then"), ("V2.0", "V1.0")),
        (
            "ply",
            "ply\ncomment by A\nelement vertex 1\nend_header\n\x01comment\n",
            ("by A", "by B"),
            ("\x01", "\x02"),
        ),
        ("gltf", json, ("A 1", "B 2"), ("2.0", "2.1")),
        ("gltf", json, ("a.bin", "b.bin"), ("\"byteLength\":4", "\"byteLength\":5")),
        ("brep", "DBRep_DrawableShape\n1 2 3\n", ("", ""), ("1 2", "1 3")),
    ] {
        let whole = digest(format, text.as_bytes());
        assert_ne!(text.replacen(not.0, not.1, 1), text, "{format} {not:?}");
        assert_eq!(
            whole,
            digest(format, text.replacen(volatile.0, volatile.1, 1).as_bytes()),
            "{volatile:?}"
        );
        assert_ne!(whole, digest(format, text.replacen(not.0, not.1, 1).as_bytes()), "{format} {not:?}");
    }
}

#[test]
fn a_longer_file_name_makes_no_other_iges_file() {
    let longer = IGES
        .replace("13HFilename.iges,                  ", "22Ha,longer;filename.iges,         ")
        .replace("G      4D", "G      5D");
    assert_ne!(longer, IGES);
    assert_eq!(digest("iges", IGES.as_bytes()), digest("iges", longer.as_bytes()));
}

#[test]
fn the_header_of_a_binary_stl_does_not_count_even_if_it_says_solid() {
    let file = |head: &str, x: u8| {
        let mut bytes = format!("{head:80}").into_bytes();
        bytes.extend([1, 0, 0, 0]);
        bytes.extend([x; 50]);
        bytes
    };
    let one = digest("stl", &file("solid of 2026", 7));
    assert_eq!(one, digest("stl", &file("MESH", 7)));
    assert_ne!(one, digest("stl", &file("MESH", 8)));
}

#[test]
fn the_scene_and_the_buffers_of_glb_count_but_not_its_generator() {
    let json = r#"{"asset":{"generator":"A","version":"2.0"}}"#;
    let one = digest("glb", &glb(json, b"BIN1"));
    assert_eq!(one, digest("glb", &glb(&json.replace("\"A\"", "\"Another\""), b"BIN1")));
    assert_ne!(one, digest("glb", &glb(json, b"BIN2")));
    assert_ne!(one, digest("glb", &glb(&json.replace("2.0", "2.1"), b"BIN1")));
}

#[test]
fn checksums_of_an_archive_count_and_its_times_do_not() {
    let one = digest("3mf", &archive("3D/3dmodel.model", 7, 1));
    assert_eq!(one, digest("3mf", &archive("3D/3dmodel.model", 7, 2)));
    assert_ne!(one, digest("3mf", &archive("3D/3dmodel.model", 8, 1)));
    assert_ne!(one, digest("3mf", &archive("3D/other.model", 7, 1)));
    assert_ne!(digest("amf", b"<amf/>"), digest("amf", b"<amf />"));
}

proptest! {
    #[test]
    fn any_bytes_have_one_digest_however_they_are_read(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        like in 0_usize..6,
        at in 0_usize..400,
        name in 0_usize..NAMES.len(),
    ) {
        let mut whole = match like {
            0 => STEP.as_bytes().to_vec(),
            1 => IGES.as_bytes().to_vec(),
            2 => glb("{}", b"x"),
            3 => archive("a", 1, 2),
            4 => b"ply\ncomment\nend_header\n".to_vec(),
            _ => Vec::new(),
        };
        let at = at.min(whole.len());
        whole.splice(at..at, bytes);
        let format = Format::named(NAMES[name]);
        let slow = of_file(Slow(Cursor::new(&whole)), format).unwrap();
        prop_assert_eq!(slow, of_file(Cursor::new(&whole), format).unwrap());
    }

    /// What a STEP file says between its words is never lost.
    #[test]
    fn another_number_makes_another_step_file(a in 0_u32..1_000_000, b in 0_u32..1_000_000) {
        let file = |number: u32| STEP.replace("30.", &format!("{number}."));
        let (one, other) = (digest("step", file(a).as_bytes()), digest("step", file(b).as_bytes()));
        prop_assert_eq!(one == other, a == b);
    }
}
