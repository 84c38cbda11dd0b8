variable "region" {
  description = "Of the cluster."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}-[a-z]+-[0-9]$", var.region)) && !startswith(var.region, "cn-")
    error_message = "A region such as eu-west-1. In China, GovCloud and other partitions services and ARNs are called otherwise, for which this is not made."
  }
}

variable "cluster_name" {
  description = "EKS's name of a cluster that exists, with the add-on eks-pod-identity-agent."
  type        = string

  validation {
    condition     = can(regex("^[0-9A-Za-z][0-9A-Za-z_-]{0,35}$", var.cluster_name))
    error_message = "At most 36 letters, digits, - and _: names of roles (which have 64) begin with it and the region."
  }
}

variable "scheduler_subnet_id" {
  description = "A private subnet for the scheduler's machine, in a zone of its workers'."
  type        = string

  validation {
    condition     = startswith(var.scheduler_subnet_id, "subnet-")
    error_message = "A subnet-…"
  }
}

# With several zones in one node group, Auto Scaling would start and stop machines to keep them even.
variable "worker_subnet_ids" {
  description = "Private subnets for workers' machines, a node group for each. What workers send each other between zones is paid for."
  type        = list(string)

  validation {
    condition     = length(var.worker_subnet_ids) >= 1 && alltrue([for id in var.worker_subnet_ids : startswith(id, "subnet-")])
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

variable "worker_maximum" {
  description = "Workers' machines, in each of worker_subnet_ids."
  type        = number
  default     = 20

  validation {
    condition     = var.worker_maximum >= 1 && var.worker_maximum <= 450
    error_message = "From 1 to 450, which EKS allows in a node group."
  }
}

variable "worker_on_demand_maximum" {
  description = "Workers' machines on demand, where results stay and what works on when there is no spot."
  type        = number
  default     = 2

  validation {
    condition     = var.worker_on_demand_maximum >= 1 && var.worker_on_demand_maximum <= 450
    error_message = "From 1 to 450, which EKS allows in a node group."
  }
}

variable "worker_types" {
  description = "Instance types of one size: cluster-autoscaler plans with the first."
  type        = list(string)
  default     = ["m5.xlarge", "m5a.xlarge", "m6i.xlarge", "m6a.xlarge", "m7i.xlarge"]
}

variable "scheduler_types" {
  description = "Instance types of the scheduler's machine."
  type        = list(string)
  default     = ["m6i.large"]
}

variable "autoscaler" {
  description = "The ServiceAccount that cluster-autoscaler runs as; null: there is one already, with rights of its own."
  type        = object({ namespace = string, service_account = string })
  default     = { namespace = "kube-system", service_account = "cluster-autoscaler" }
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
  description = "Name of the image's repository, which is made and destroyed with the rest; null: dask-tide/, cluster_name and -node-groups."
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
