variable "region" {
  description = "Of the cluster."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}-[a-z]+-[0-9]$", var.region)) && !startswith(var.region, "cn-")
    error_message = "A region such as eu-west-1. In China, GovCloud and other partitions services and ARNs are called otherwise, for which this is not made."
  }
}

variable "cluster_name" {
  description = "EKS's name of a cluster that exists, with the add-on eks-pod-identity-agent and access entries."
  type        = string

  validation {
    condition     = can(regex("^[0-9A-Za-z][0-9A-Za-z_-]{0,35}$", var.cluster_name))
    error_message = "At most 36 letters, digits, - and _: names of roles (which have 64) begin with it and the region."
  }
}

variable "subnet_ids" {
  description = "Private subnets for machines. One: what workers send each other between zones is paid for by the gigabyte."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 1 && alltrue([for id in var.subnet_ids : startswith(id, "subnet-")])
    error_message = "At least one subnet-…"
  }
}

# At most one of them with the tag kubernetes.io/cluster/<cluster_name>, as the cluster's own has: with two, AWS Load Balancer
# Controller does not know into which of them to write its rules, and stops.
variable "security_group_ids" {
  description = "Of machines; none: the cluster's own. Where nodes that run CoreDNS answer a group of theirs alone, that one."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for id in var.security_group_ids : startswith(id, "sg-")])
    error_message = "Each a sg-…"
  }
}

variable "karpenter_namespace" {
  description = "Where Karpenter runs."
  type        = string
  default     = "kube-system"
}

variable "release" {
  description = "The chart's namespace and release, whose workers worker_policy_arns are for."
  type        = object({ namespace = string, name = string })
  default     = { namespace = "dask", name = "dask" }
}

variable "worker_policy_arns" {
  description = "What workers may do in AWS: read your data's bucket, say."
  type        = list(string)
  default     = []
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

variable "status_page" {
  description = "A host for the status page, in a public Route 53 zone, and its load balancer once it is known; null: none."
  type        = object({ zone = string, host = string, load_balancer = optional(string) })
  default     = null
}
