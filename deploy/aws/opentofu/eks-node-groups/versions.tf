terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source = "hashicorp/aws"
      # Whose schema ../../schema/aws-provider.json is part of.
      version = "6.62.0"
    }
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { "dask-tide/cluster" = var.cluster_name }
  }
}
