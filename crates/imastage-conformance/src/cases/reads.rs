//! The content of reads, and the record at which they start.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::unix::fs::FileExt,
};

use ima_log::{Bank, Format, Records};
use ima_securityfs::Dialect;
use rustix::fs::OFlags;

use crate::{
    errno::{Errno, told},
    report::Recorder,
    target::{CURRENT, List, STAGED, Target, Trouble, file_of, parse, read_anew, read_on},
};

/// A kernel returns whole records of about a page per read(2).
const PAGE: usize = 4096;

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    forms(target, note)?;
    order(target, note)?;
    growth(target, note)?;
    pages(target, note)?;
    large(target, note)?;
    // In the other dialects a writer cannot read the file it changes.
    if target.dialect() == Dialect::Linux72 {
        batches(target, note)?;
        tails(target, note)?;
        if target.deletes_by_number() {
            shortened(target, note)?;
        }
    }
    Ok(())
}

/// Every file has the same records, each in its own form.
fn forms(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.add(20)?;
    if target.dialect().stages() {
        target.must(STAGED, "A\n")?;
        target.add(20)?;
    }
    for (part, suffix) in target.parts().iter().zip(target.suffixes()) {
        let list = target.read(part)?;
        for bank in target.banks() {
            for form in ["ascii", "binary"] {
                let mut expected = Vec::new();
                for record in Records::new(&list, Format::native(Bank::Sha1)) {
                    let record = record.map_err(|error| Trouble(format!("{part}: {error}")))?;
                    match form {
                        "ascii" => record.write_ascii(bank, &mut expected),
                        _ => record.write_binary(bank, &mut expected),
                    }
                }
                let name = file_of(form, bank, suffix);
                let got = target.read(&name)?;
                note.holds(
                    format!("{name} shows the records of {part}"),
                    !list.is_empty() && got.starts_with(&expected),
                    format!("{} bytes", expected.len()),
                    format!("{} bytes, or different ones", got.len()),
                );
            }
        }
    }
    Ok(())
}

/// Records are in the order of measurement, and readable as soon as they are measured.
fn order(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    let paths = target.add(30)?;
    let all = format!("{:?}", (0..paths.len()).collect::<Vec<_>>());
    let found = Target::find(&paths, &target.list(CURRENT)?);
    note.expect("new records in measurement order", &all, format!("{found:?}"));
    if !target.dialect().stages() {
        return Ok(());
    }
    target.must(STAGED, "A\n")?;
    let staged = target.list(STAGED)?;
    let found = Target::find(&paths, &staged);
    note.expect("staged records in measurement order", &all, format!("{found:?}"));
    let again = target.list(STAGED)?;
    note.holds("staged records read twice", staged == again, "the same", "others");
    let more = target.add(3)?;
    let same = target.list(STAGED)? == staged;
    note.holds("new records do not change the staged part", same, "the same", "others");
    let found = Target::find(&more, &target.list(CURRENT)?);
    note.expect("records added after \"A\\n\" are current", "[0, 1, 2]", format!("{found:?}"));
    Ok(())
}

/// A file that is read to its end and stays open returns later records.
fn growth(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    target.add(5)?;
    let mut file = open(target, CURRENT, OFlags::RDONLY)?;
    let before = read_on(&mut file)?;
    let paths = target.add(2)?;
    let more = records(&read_on(&mut file)?)?;
    let found = Target::find(&paths, &more);
    note.expect(
        "an open file read to its end shows records added since, and only these",
        "[0, 1]",
        format!("{found:?}"),
    );
    let all = read_anew(&mut file)?;
    note.holds(
        "after lseek to 0 the first records are the same",
        all.starts_with(&before),
        "the same records",
        "others",
    );
    let mut at = vec![0; before.len().min(100)];
    let read = file.read_at(&mut at, 7).map_err(Errno::from);
    let expected = before.get(7..).unwrap_or_default();
    note.holds(
        "pread at any offset",
        read.is_ok_and(|len| len > 0 && at.get(..len).is_some_and(|at| expected.starts_with(at))),
        "the bytes there",
        told(&read),
    );
    Ok(())
}

/// One read(2) returns about a page of whole records, independent of the buffer size.
fn pages(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    target.add(100)?;
    let mut file = open(target, CURRENT, OFlags::RDONLY)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut largest, mut whole, mut calls, mut all) = (0, true, 0, Vec::new());
    loop {
        let len = file.read(&mut buffer).map_err(|error| Trouble(format!("reading: {error}")))?;
        let some = buffer.get(..len).unwrap_or_default();
        if some.is_empty() {
            break;
        }
        (largest, calls) = (largest.max(len), calls + 1);
        whole &= parse(some).is_ok();
        all.extend_from_slice(some);
    }
    note.holds(
        "reads of 1 MiB return at most one page",
        largest <= PAGE && calls > 1,
        format!("at most {PAGE} bytes"),
        format!("{largest} bytes in {calls} reads"),
    );
    note.holds("reads of 1 MiB return whole records", whole, "whole records", "parts");
    file = open(target, CURRENT, OFlags::RDONLY)?;
    let mut bytes = Vec::new();
    let mut small = [0; 61];
    while bytes.len() < all.len() {
        let len = file.read(&mut small).map_err(|error| Trouble(format!("reading: {error}")))?;
        if len == 0 {
            break;
        }
        bytes.extend_from_slice(small.get(..len).unwrap_or_default());
    }
    let same = bytes.starts_with(&all) || all.starts_with(&bytes) && bytes.len() == all.len();
    note.holds("reads of 61 bytes return the same bytes", same, "the same bytes", "others");
    Ok(())
}

/// A record that is larger than a page.
fn large(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    /// The longest path; digest and headers extend the record beyond a page.
    const PATH: usize = 4090;
    target.empty()?;
    let path = target.make_long(PATH)?;
    target.add(2)?;
    target.measure(&path)?;
    target.add(1)?;
    let list = target.list(CURRENT)?;
    let found = Target::find(std::slice::from_ref(&path), &list);
    note.expect("a record larger than a page is there", "[0]", format!("{found:?}"));
    let largest = list.iter().map(Vec::len).max().unwrap_or_default();
    note.holds("it is complete", largest > PAGE, format!("more than {PAGE} bytes"), largest);
    let file = open(target, CURRENT, OFlags::RDONLY)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut whole, mut most) = (true, 0);
    loop {
        let len = (&file).read(&mut buffer);
        let len = len.map_err(|error| Trouble(format!("reading: {error}")))?;
        if len == 0 {
            break;
        }
        most = most.max(len);
        whole &= buffer.get(..len).is_some_and(|some| parse(some).is_ok());
    }
    let fits = whole && most >= largest;
    note.holds("one read returns it as a whole", fits, "whole records", "parts");
    Ok(())
}

/// The offset of a descriptor stays at the end of a batch until lseek(2).
fn batches(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    let paths = target.add(3)?;
    let mut file = open(target, STAGED, OFlags::RDWR)?;
    note.expect("nothing staged, on a descriptor: bytes", 0, read_on(&mut file)?.len());
    ask(&mut file, "A\n")?;
    let first = records(&read_on(&mut file)?)?;
    let found = Target::find(&paths, &first);
    note.expect("first batch on a descriptor", "[0, 1, 2]", format!("{found:?}"));
    note.expect("at the end of the batch: bytes", 0, read_on(&mut file)?.len());
    ask(&mut file, "D\n")?;
    note.expect("after \"D\\n\", without lseek: bytes", 0, read_on(&mut file)?.len());
    note.expect("after \"D\\n\", after lseek to 0: bytes", 0, read_anew(&mut file)?.len());
    // The offset counts records read, so a second batch not longer than the first reads as empty.
    drop(file);
    target.add(6)?;
    let mut file = open(target, STAGED, OFlags::RDWR)?;
    ask(&mut file, "A\n")?;
    read_on(&mut file)?;
    ask(&mut file, "D\n")?;
    let paths = target.add(2)?;
    ask(&mut file, "A\n")?;
    let stale = records(&read_on(&mut file)?)?;
    let found = Target::find(&paths, &stale);
    note.expect("second batch on a descriptor, without lseek", "[]", format!("{found:?}"));
    let second = records(&read_anew(&mut file)?)?;
    let found = Target::find(&paths, &second);
    note.expect("second batch on a descriptor, after lseek to 0", "[0, 1]", format!("{found:?}"));
    ask(&mut file, "D\n")
}

/// N through a descriptor that has read some records.
fn shortened(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    target.add(30)?;
    let mut file = open(target, CURRENT, OFlags::RDWR)?;
    let before = records(&read_on(&mut file)?)?;
    let ten = before.iter().take(10).map(Vec::len).sum();
    take(&mut file, ten)?;
    ask(&mut file, "5\n")?;
    let seen = records(&read_on(&mut file)?)?;
    let rest = before.get(15..).unwrap_or_default();
    note.holds(
        "10 records read, N = 5, without lseek: 5 records are skipped",
        seen.starts_with(rest),
        format!("{} records", rest.len()),
        format!("{} records, or others", seen.len()),
    );
    let after = records(&read_anew(&mut file)?)?;
    let rest = before.get(5..).unwrap_or_default();
    note.holds(
        "after N = 5 and lseek to 0 a descriptor returns the remaining records",
        after.starts_with(rest),
        format!("{} records", rest.len()),
        format!("{} records, or others", after.len()),
    );
    Ok(())
}

/// A read that ends within a record leaves the rest of it for the next read, even if the record is
/// deleted meanwhile.
fn tails(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let name = "a record read in part, then \"D\\n\": the next read";
    note.quiet(name, "the rest of it, then nothing", || {
        target.empty()?;
        target.add(3)?;
        let mut file = open(target, STAGED, OFlags::RDWR)?;
        ask(&mut file, "A\n")?;
        let rest = read_in_part(&mut file)?;
        ask(&mut file, "D\n")?;
        let got = read_on(&mut file)?;
        Ok(is(got == rest, "the rest of it, then nothing", got.len()))
    })?;
    let name = "a record read in part, then \"A\\n\": the next read";
    note.quiet(name, "the rest of it, then nothing", || {
        target.empty()?;
        target.add(3)?;
        let mut file = open(target, CURRENT, OFlags::RDWR)?;
        let rest = read_in_part(&mut file)?;
        target.must(STAGED, "A\n")?;
        let got = read_on(&mut file)?;
        Ok(is(got == rest, "the rest of it, then nothing", got.len()))
    })?;
    let name = "a record read in part, then \"A\\n\" and 5 new ones: the next read";
    note.quiet(name, "the rest of it, then from the 3rd on", || {
        target.empty()?;
        target.add(3)?;
        let mut file = open(target, CURRENT, OFlags::RDWR)?;
        let rest = read_in_part(&mut file)?;
        target.must(STAGED, "A\n")?;
        target.add(5)?;
        let got = read_on(&mut file)?;
        let expected = followed(rest, &read_anew(&mut file)?);
        Ok(is(got == expected, "the rest of it, then from the 3rd on", got.len()))
    })?;
    let name = "a record read in part, then \"D\\n\" and another batch: the next read";
    note.quiet(name, "the rest of it, then from the 3rd on", || {
        target.empty()?;
        target.add(3)?;
        let mut file = open(target, STAGED, OFlags::RDWR)?;
        ask(&mut file, "A\n")?;
        let rest = read_in_part(&mut file)?;
        ask(&mut file, "D\n")?;
        target.add(6)?;
        ask(&mut file, "A\n")?;
        let got = read_on(&mut file)?;
        let expected = followed(rest, &read_anew(&mut file)?);
        Ok(is(got == expected, "the rest of it, then from the 3rd on", got.len()))
    })
}

fn is(so: bool, what: &str, len: usize) -> String {
    if so { what.to_owned() } else { format!("{len} other bytes") }
}

/// Reads the first record and half of the second; returns the other half.
fn read_in_part(file: &mut File) -> Result<Vec<u8>, Trouble> {
    let all = read_anew(file)?;
    let (first, second) = match &*records(&all)? {
        [first, second, ..] => (first.len(), second.len()),
        _ => return Err(Trouble("expected 3 records, found fewer than 2".into())),
    };
    let part = first + second / 2;
    take(file, part)?;
    Ok(all.get(part..first + second).unwrap_or_default().to_vec())
}

/// `rest`, followed by `list` from its third record.
fn followed(mut rest: Vec<u8>, list: &[u8]) -> Vec<u8> {
    let skipped = parse(list).unwrap_or_default().iter().take(2).map(Vec::len).sum::<usize>();
    rest.extend_from_slice(list.get(skipped..).unwrap_or_default());
    rest
}

/// Reads the first `len` bytes with one read(2).
fn take(file: &mut File, len: usize) -> Result<(), Trouble> {
    file.rewind().map_err(|error| Trouble(format!("lseek to 0: {error}")))?;
    let read = file.read(&mut vec![0; len]);
    match read {
        Ok(got) if got == len => Ok(()),
        answer => {
            Err(Trouble(format!("reading {len} bytes: {}", told(&answer.map_err(Errno::from)))))
        }
    }
}

fn open(target: &Target<'_>, name: &str, flags: OFlags) -> Result<File, Trouble> {
    target.open(name, flags).map_err(|errno| Trouble(format!("opening {name}: {errno}")))
}

fn ask(file: &mut File, request: &str) -> Result<(), Trouble> {
    match file.write(request.as_bytes()).map_err(Errno::from) {
        Ok(len) if len == request.len() => Ok(()),
        answer => Err(Trouble(format!("{request:?} on a descriptor: {}", told(&answer)))),
    }
}

fn records(bytes: &[u8]) -> Result<List, Trouble> {
    parse(bytes).map_err(|why| Trouble(format!("records read: {why}")))
}
