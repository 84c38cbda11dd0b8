variable "region" {
  description = "Of the cluster."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}-[a-z]+-[0-9]$", var.region)) && !startswith(var.region, "cn-")
    error_message = "A region such as eu-west-1. In China, GovCloud and other partitions services and ARNs are called otherwise, for which this is not made."
  }
}

variable "cluster_name" {
  description = "kOps's name of the cluster: ends with .k8s.local, or with dns_zone."
  type        = string
  default     = "dask-adaptive.k8s.local"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$", var.cluster_name))
    error_message = "A DNS name with at least one dot, in small letters."
  }
}

variable "zones" {
  description = "Availability zones; each costs a NAT gateway."
  type        = list(string)

  validation {
    condition     = length(var.zones) >= 1 && alltrue([for zone in var.zones : startswith(zone, var.region)])
    error_message = "At least one zone, and all of the region."
  }
}

variable "admin_cidrs" {
  description = "Who may reach the Kubernetes API from the internet: your own address, as 198.51.100.7/32."
  type        = list(string)

  validation {
    condition     = length(var.admin_cidrs) >= 1 && alltrue([for cidr in var.admin_cidrs : can(cidrhost(cidr, 0)) && try(tonumber(split("/", cidr)[1]), 0) >= 8])
    error_message = "At least one block of addresses, as 198.51.100.7/32, and none wider than /8."
  }
}

variable "bucket_prefix" {
  description = "Of the names of both buckets, which are unique in the world: your organisation's name, say."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,36}$", var.bucket_prefix))
    error_message = "2 to 37 small letters, digits and hyphens; no dots, which no certificate of S3's would match."
  }
}

variable "delete_state" {
  description = "Whether `tofu destroy` deletes the state store with all that is in it: set it, apply, then destroy."
  type        = bool
  default     = false
}

variable "image_repository" {
  description = "Name of the image's repository, which is made and destroyed with the rest; null: dask-tide/ and cluster_name."
  type        = string
  default     = null
}

variable "budget" {
  description = "The alarm: who is told when a month costs more than this."
  type        = object({ monthly_usd = number, emails = list(string) })
}

variable "dns_zone" {
  description = "A public Route 53 zone for the cluster's own names; null: it has none."
  type        = string
  default     = null
}

variable "status_page" {
  description = "A host for the status page, in a public Route 53 zone, and its load balancer once it is known; null: none."
  type        = object({ zone = string, host = string, load_balancer = optional(string) })
  default     = null
}
