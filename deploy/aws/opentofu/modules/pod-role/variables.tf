variable "cluster_name" {
  description = "EKS's name of the cluster."
  type        = string
}

variable "name" {
  description = "Of the role."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9+=,.@_-]{1,64}$", var.name))
    error_message = "A role's name has at most 64 letters, digits and +=,.@_- characters."
  }
}

variable "namespace" {
  description = "The ServiceAccount's namespace."
  type        = string
}

variable "service_account" {
  description = "The ServiceAccount's name."
  type        = string
}

variable "policies" {
  description = "Policies of the role's own, as JSON."
  type        = list(string)
  default     = []
}

variable "policy_arns" {
  description = "Policies that exist."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.policy_arns : can(regex("^arn:[a-z-]+:iam::", arn))])
    error_message = "Each is the ARN of an IAM policy."
  }
}
