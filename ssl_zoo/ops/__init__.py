"""Operations that parts share."""
