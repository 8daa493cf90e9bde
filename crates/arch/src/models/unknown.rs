//! An architecture that is not known: its weights go where names say, its memory and its graph have bounds only.

use super::Architecture;
use crate::Result;
use crate::hparams::limits::{HEADS, WIDTH};
use crate::hparams::{Hparams, Unknown};
use crate::keys::Keys;

impl Architecture {
    /// Any architecture but those that are known.
    pub const UNKNOWN: &'static Architecture = &Architecture {
        graph: None,
        ..Architecture::new("", |_| ())
            .reads(hparams)
            .output_first()
            .embeds_by_output()
            .lazily()
    };
}

/// The keys by which known architectures size a recurrent state; their sum is the bound.
fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let get = |key: &str, max: i64| -> Result<i64> { Ok(keys.int(key, max)?.unwrap_or(0)) };
    let taps = |n: i64| (n - 1).max(0);
    let n_head = hp.layers.iter().map(|l| l.n_head).max().unwrap_or(0);
    let head = hp
        .layers
        .iter()
        .map(|l| l.n_embd_head_k.max(l.n_embd_head_v))
        .max()
        .unwrap_or(0);

    let d_conv = get("ssm.conv_kernel", 1024)?;
    let (d_inner, d_state) = (get("ssm.inner_size", WIDTH)?, get("ssm.state_size", WIDTH)?);
    let n_group = get("ssm.group_count", WIDTH)?;
    let scan = taps(d_conv) * (d_inner + 2 * n_group.saturating_mul(d_state))
        + d_state.saturating_mul(d_inner);
    let wkv = get("wkv.head_size", WIDTH)?.saturating_mul(hp.n_embd) + 2 * hp.n_embd;
    let short = taps(get("shortconv.l_cache", 1024)?) * hp.n_embd;
    let kda = get("kda.head_dim", WIDTH)?;
    let delta = kda
        .saturating_mul(n_head)
        .saturating_mul(kda + 3 * taps(d_conv));
    // linear attention without keys of its own keeps a matrix a head
    let linear = n_head.saturating_mul(head).saturating_mul(head);
    let n_state = [scan, wkv, short, delta, linear]
        .into_iter()
        .fold(0, i64::saturating_add);
    hp.repeat_layers(keys, "num_loops")?;
    if get("adapters.count", HEADS)? > 0 {
        hp.extend_layers(hp.layers.len() + 1); // a router among the adapters inside the model
    }
    hp.unknown = Some(Unknown {
        n_state,
        n_streams: get("hyper_connection.count", HEADS)?
            .max(get("altup.num_inputs", HEADS)?)
            .max(1),
        shares_caches: keys.is_set("attention.shared_kv_layers")?,
        n_indexer_head: get("attention.indexer.head_count", HEADS)?,
        has_score_bias: get("attention.relative_buckets_count", WIDTH)? > 0,
    });
    Ok(())
}
