//! Letting go of pieces that something longer has taken the place of.

use super::Piece;
use crate::pg::SystemId;
use crate::repo::{Repository, names};
use crate::store::StoreError;

/// What became of pieces that were to go.
#[derive(Debug)]
pub struct Discarded {
    /// How many are gone; after a crash of this machine some may be back, and do no harm.
    pub gone: usize,
    /// What the store said to the first that is not. A bucket may forbid deletes.
    pub refused: Option<StoreError>,
}

/// Lets pieces go, as far as the store lets us. Only for pieces that are covered by what is durable already.
pub async fn discard(repository: &Repository, system: SystemId, pieces: &[Piece]) -> Discarded {
    let name = |piece: &Piece| names::piece(system, piece.timeline, piece.from, piece.to);
    let names = pieces.iter().map(name).collect();
    let (gone, refused) = repository.store().delete_many(names).await;
    Discarded { gone, refused }
}
