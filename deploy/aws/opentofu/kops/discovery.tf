# The discovery store: two JSON files with the public keys of the cluster's ServiceAccounts, which IAM must be able to
# read without credentials (IRSA). Nothing else in it can be read by anybody.

resource "aws_s3_bucket" "discovery" {
  #checkov:skip=CKV_AWS_18:What is public needs no log of its readers
  #checkov:skip=CKV_AWS_21:kOps writes both files anew at each update
  #checkov:skip=CKV_AWS_144:IAM reads it where the cluster is
  #checkov:skip=CKV_AWS_145:Nobody without credentials could read what KMS encrypts
  #checkov:skip=CKV2_AWS_61:Two small files; nothing piles up
  #checkov:skip=CKV2_AWS_62:Nothing waits for its objects
  #checkov:skip=CKV2_AWS_6:A policy must be able to let IAM read; ACLs are blocked
  bucket        = "${var.bucket_prefix}-dask-tide-discovery"
  force_destroy = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "discovery" {
  bucket = aws_s3_bucket.discovery.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_ownership_controls" "discovery" {
  bucket = aws_s3_bucket.discovery.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "discovery" {
  #checkov:skip=CKV_AWS_54:The policy below is public, on purpose and for two names only
  #checkov:skip=CKV_AWS_56:The policy below is public, on purpose and for two names only
  bucket                  = aws_s3_bucket.discovery.id
  block_public_acls       = true
  block_public_policy     = false
  ignore_public_acls      = true
  restrict_public_buckets = false
}

data "aws_iam_policy_document" "discovery" {
  #checkov:skip=CKV_AWS_283:IAM's identity providers read these two names without credentials
  statement {
    sid     = "IdentityProvidersRead"
    actions = ["s3:GetObject"]
    resources = [
      "${aws_s3_bucket.discovery.arn}/${var.cluster_name}/.well-known/openid-configuration",
      "${aws_s3_bucket.discovery.arn}/${var.cluster_name}/openid/v1/jwks",
    ]

    principals {
      type        = "*"
      identifiers = ["*"]
    }
  }
}

resource "aws_s3_bucket_policy" "discovery" {
  bucket = aws_s3_bucket.discovery.id
  policy = data.aws_iam_policy_document.discovery.json

  depends_on = [aws_s3_bucket_public_access_block.discovery]
}
