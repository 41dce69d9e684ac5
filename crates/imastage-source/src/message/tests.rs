//! Encoding and decoding of the messages.

use super::*;

fn path() -> PathBuf {
    PathBuf::from(OsStr::from_bytes(b"/sys/\xff/list"))
}

fn holders() -> Holders {
    let holder = Holder { pid: 7, name: "cat\u{1b}".into(), fd: 3, path: path() };
    Holders { found: vec![holder.clone(), holder], sight: Sight::Denied { pid: 5 } }
}

fn answers() -> Vec<Answer> {
    let requests = [
        Request::Stage,
        Request::DeleteStaged,
        Request::DeleteFirst(u64::MAX),
        Request::Trim { total: 5, records: 6 },
    ];
    let mut errors = vec![
        SourceError::Busy { path: path(), holders: holders() },
        SourceError::LockLost { path: path() },
        SourceError::Missing { path: path() },
        SourceError::Pending,
        SourceError::Overtaken,
        SourceError::NoMemory,
        SourceError::Lost { why: "x".into() },
        SourceError::Served { path: path(), pid: Some(9), state: Some("/s".into()) },
        SourceError::Served { path: path(), pid: None, state: None },
    ];
    for sight in [Sight::Complete, Sight::NoProc, Sight::Namespace, Sight::NoPtrace] {
        errors.push(SourceError::Busy { path: path(), holders: Holders { sight, ..holders() } });
    }
    errors.extend(requests.map(SourceError::Nothing));
    errors.extend(requests.map(SourceError::GoingDown));
    errors.extend(requests.map(SourceError::Refused));
    for why in files::WHYS {
        errors.push(SourceError::NotPermitted { path: path(), why });
    }
    for doing in files::DOINGS {
        for error in [io::Error::from_raw_os_error(5), io::Error::other("words")] {
            errors.push(SourceError::Io { path: path(), doing, error });
        }
    }
    for dialect in DIALECTS {
        for mode in DELETE_MODES {
            errors.push(SourceError::NoDeleteMode { path: path(), dialect, mode });
        }
    }
    let mut answers: Vec<_> = errors.into_iter().map(Answer::Failed).collect();
    answers.extend([
        Answer::Hello { dialect: Dialect::Trim, others_may_delete: true, name: "n".into() },
        Answer::Chunk(vec![0, 1, 2]),
        Answer::Done,
        Answer::Taken { was_pending: true, position: Some(4) },
        Answer::Nothing,
        Answer::Number(Some(u64::MAX)),
        Answer::Number(None),
        Answer::Holders(holders()),
    ]);
    answers
}

#[test]
fn messages_round_trip() {
    for answer in answers() {
        let mut bytes = Vec::new();
        send(&mut bytes, &answer.encode(), &[]).unwrap();
        let received = receive(&mut &bytes[..]).unwrap().unwrap();
        let decoded = Answer::decode(received).unwrap();
        assert_eq!(format!("{decoded:?}"), format!("{answer:?}"));
    }
    let delete = Ask::Delete(NonZeroU64::MAX);
    for ask in [Ask::Look, Ask::Read, Ask::Take, delete, Ask::Release, Ask::Holders] {
        assert_eq!(Ask::decode(&ask.encode()), Ok(ask));
    }
}

#[test]
fn malformed_messages_are_refused() {
    for answer in answers() {
        if matches!(answer, Answer::Chunk(_)) {
            continue;
        }
        let whole = answer.encode();
        for end in 0..whole.len() {
            assert!(Answer::decode(whole[..end].to_vec()).is_err(), "{answer:?} {end}");
        }
        assert!(Answer::decode([&whole[..], &[0]].concat()).is_err());
        // Any changed byte is refused or decoded, without a panic.
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut other = whole.clone();
                other[at] = byte;
                let _ = Answer::decode(other);
            }
        }
    }
    assert_eq!(Ask::decode(&[]), Err(Malformed));
    assert_eq!(Ask::decode(&[200]), Err(Malformed));
    assert_eq!(Ask::decode(&[3, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed));
    // Too long, and truncated.
    assert!(receive(&mut &[0xff, 0xff, 0xff, 0xff, 0][..]).is_err());
    assert!(receive(&mut &[2, 0, 0, 0, 0][..]).is_err());
    assert!(receive(&mut &[2, 0][..]).is_err());
    assert!(receive(&mut &[][..]).unwrap().is_none());
}

#[test]
fn any_number_of_holders_fits() {
    let name = "x".repeat(5000);
    let holder = Holder { pid: 1, name, fd: 1, path: path() };
    let answer = Answer::Holders(Holders { found: vec![holder; 3000], sight: Sight::Complete });
    send(&mut Vec::new(), &answer.encode(), &[]).unwrap();
}
