//! `POST /v1/quote`: evidence.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{FromRequest, Request, State},
    http::StatusCode,
};
use ima_log::Bank;
use imastage_tpm::{PcrSelection, TpmError};

use super::{error::Error, peer::Peer, work::Work};
use crate::{attester::Attester, handle::Shared};
use imastage_client::wire::{PcrValue, QuoteReply, QuoteRequest};

/// Timeout for a request's body.
const LONGEST_BODY: Duration = Duration::from_secs(10);

/// Quotes first, then drains, so that the stored records include all that the quote covers.
pub(super) async fn quote(
    State(shared): State<Arc<Shared>>,
    State(work): State<Arc<Work>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Json<QuoteReply>, Error> {
    let body = Json::<QuoteRequest>::from_request(request, &());
    let body = tokio::time::timeout(LONGEST_BODY, body).await.map_err(|_| {
        Error::new(StatusCode::REQUEST_TIMEOUT, "the request did not come to its end")
    })?;
    let Json(request) = body?;
    let Some(attester) = shared.attester.clone() else {
        return Err(Error::new(StatusCode::SERVICE_UNAVAILABLE, "this service has no TPM"));
    };
    let key = attester.public_pem().to_owned();
    let asked = Asked::parse(&request, &attester, shared.list_pcrs())?;
    let quote = move || {
        let Asked { nonce, banks, pcrs } = asked;
        attester.quote(&nonce, &banks, &pcrs).map_err(|error| match error {
            TpmError::NoPcr { .. } => Error::bad(error),
            error => Error::internal(error),
        })
    };
    let (quote, values) = work.quote(&peer, quote).await?;
    work.drain(&shared).await?;
    let status = shared.status();
    let value = |(bank, pcr, value): (Bank, u32, ima_log::Digest)| PcrValue {
        bank: bank.to_string(),
        pcr,
        value: value.to_string(),
    };
    Ok(Json(QuoteReply {
        epoch: status.epoch,
        records: status.records,
        message: hex::encode(&quote.message),
        signature: hex::encode(&quote.signature),
        key,
        pcrs: values.into_iter().map(value).collect(),
    }))
}

/// A parsed request.
struct Asked {
    nonce: Vec<u8>,
    banks: Vec<Bank>,
    pcrs: Vec<u32>,
}

impl Asked {
    /// `pcrs` are always quoted.
    fn parse(
        request: &QuoteRequest,
        attester: &Attester,
        mut pcrs: Vec<u32>,
    ) -> Result<Asked, Error> {
        let nonce =
            hex::decode(&request.nonce).map_err(|error| Error::bad(format!("nonce: {error}")))?;
        if !(1..=64).contains(&nonce.len()) {
            let error = format!("nonce: expected 1 to 64 bytes, found {}", nonce.len());
            return Err(Error::bad(error));
        }
        let most = Bank::ALL.len();
        if request.banks.len() > most {
            let error = format!("banks: expected at most {most}, found {}", request.banks.len());
            return Err(Error::bad(error));
        }
        let mut banks = Vec::new();
        for name in &request.banks {
            let bank: Bank =
                name.parse().map_err(|error| Error::bad(format!("bank {name}: {error}")))?;
            if !attester.banks().contains(&bank) {
                return Err(Error::bad(format!("bank {bank}: the TPM has no such bank")));
            }
            if !banks.contains(&bank) {
                banks.push(bank);
            }
        }
        if banks.is_empty() {
            banks.push(attester.bank());
        }
        if let Some(pcr) = request.pcrs.iter().find(|pcr| **pcr >= PcrSelection::PCRS) {
            let last = PcrSelection::PCRS - 1;
            return Err(Error::bad(format!(
                "pcrs: expected numbers from 0 to {last}, found {pcr}"
            )));
        }
        pcrs.extend(&request.pcrs);
        Ok(Asked { nonce, banks, pcrs })
    }
}
